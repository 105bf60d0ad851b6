"""What a language brings: a folder each, with the files that docs/adding-a-language.md lists."""
