"""Local generative vision-language models: the law of the first word of an answer."""
