"""Pictures as files: encoding, describing, storing and finding them again."""
