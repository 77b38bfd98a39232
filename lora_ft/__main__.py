"""`python -m lora_ft`, and what `torchrun -m lora_ft` and `accelerate launch -m lora_ft` start."""

from lora_ft.cli import main

if __name__ == "__main__":
    main()
