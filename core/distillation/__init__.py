"""The maths of distillation across tokenizers: pure functions of tensors, byte strings and tokenizers."""
