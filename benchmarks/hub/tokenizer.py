"""The stand-in's tokenizer: SentencePiece BPE with byte fallback and as many pieces as Baichuan2's.

The sample dialogs teach it 8,000 pieces; each of the others is made up of two of those. The chat marks have Baichuan2's ids.
"""

import io
import random

from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

from mi_llm.dialog import Dialog

# The first 192 stand where the published vocabulary has other reserved symbols, so that the chat marks get ids 195 and 196.
MARKS = ("<reserved_106>", "<reserved_107>")
RESERVED = [*(f"<reserved_{number}>" for number in range(194) if f"<reserved_{number}>" not in MARKS), *MARKS]
TRAINED = 8_000
NORMAL = 1  # sentencepiece's type of a piece that merges make
SEED = 1


def tokenizer_model(dialogs: list[Dialog], pieces: int) -> bytes:
    """A `tokenizer.model` of exactly `pieces` pieces."""
    written = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=(turn.text for dialog in dialogs for turn in dialog.turns),
        model_writer=written,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.9999,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        user_defined_symbols=RESERVED,
        vocab_size=TRAINED,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    known = {piece.piece for piece in model.pieces}
    halves = [piece.piece for piece in model.pieces if piece.type == NORMAL and "▁" not in piece.piece]
    score, chance = min(piece.score for piece in model.pieces), random.Random(SEED)
    while len(model.pieces) < pieces:
        made_up = chance.choice(halves) + chance.choice(halves)
        if made_up not in known:
            known.add(made_up)
            score -= 1
            model.pieces.add(piece=made_up, score=score, type=NORMAL)
    return bytes(model.SerializeToString())
