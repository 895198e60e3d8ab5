"""LoRA adapters: their files, their keys, the pool that holds them, rows that mix them."""
