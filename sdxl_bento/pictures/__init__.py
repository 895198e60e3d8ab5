"""Pictures as files: encoded, described, stored, found again."""
