"""A word tokenizer of 96 words for the tiny model: `w3 w4 ...`, one id each, with padding 0, start 1, end 2."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """With `chat` it has a template: user's words, `w3`, the answer's words and the end token."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 96)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    if chat:
        fast.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + ' </s> ' }}"
            "{% else %}{{ '<s> ' + m['content'] + ' w3 ' }}{% endif %}{% endfor %}"
        )
    return fast


def sentences(random, words, n: int, length: int = 8) -> list[str]:
    """n different texts of `length` words drawn from the given word numbers."""
    return [" ".join(f"w{i}" for i in random.choice(words, size=length)) for _ in range(n)]


class Spelled:
    """A tokenizer whose tokens are the given texts, in their order."""

    all_special_ids: list[int] = []

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def decode(self, ids) -> str:
        return "".join(self.texts[token] for token in ids)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The longest token first; of what no token begins with, nothing."""
        ids = []
        while found := [at for at, known in enumerate(self.texts) if known and text.startswith(known)]:
            token = max(found, key=lambda at: len(self.texts[at]))
            ids.append(token)
            text = text[len(self.texts[token]) :]
        return ids

    def convert_ids_to_tokens(self, ids) -> list[str]:
        return [self.texts[token] for token in ids]
