"""Who can code for the stage `code`: a module each, which the parameters name.

A module has `NAME`, how the report names the coder (`{count}` raters, `{raters}` their names), and `code(study, transcripts)`,
which returns codings. A program calls its raters as its module is called, perhaps with a colon and what distinguishes them.
A module may also have `questions(study)`, what it would ask a language model, `inputs(study)`, paths beside the packets that
must be there, and `remedy(study)`, how to have codes where it gave none.
"""
