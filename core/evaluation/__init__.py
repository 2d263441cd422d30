"""What a model or a pair of them is worth: measurements that reports are made of."""
