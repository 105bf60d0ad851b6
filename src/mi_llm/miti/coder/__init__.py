"""The coders of stage `code`: one module each; the parameters name the one to use.

A module has `NAME`, the coder's name in the report (`{count}` raters, `{raters}` their names), and
`code(study, stage, transcripts)`, which returns codings. A program's rater has its module's name, perhaps with a colon and what
distinguishes it from others; stage `miti` compares it with AnnoMI's experts. A module may also have
`questions(study, stage, transcripts)`, what `code` would ask a language model, `inputs(study)`, paths beside the packets that
must exist, `consensus(study, codings)`, one coding per transcript where its raters' differences were settled, and
`remedy(study, stage)`, how to get codes if it gave none. Clients' turns are coded by every module that has
`client(study, stage, transcripts)`, whichever coder the parameters name.
"""
