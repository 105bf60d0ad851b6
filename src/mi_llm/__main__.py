"""`python -m mi_llm`, which torchrun can start; the same as the command `mi-llm`."""

from mi_llm.cli import main

if __name__ == "__main__":
    main()
