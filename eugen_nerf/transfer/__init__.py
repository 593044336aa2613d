"""The command eugen-transfer, which turns trained MLP fields into EUGen fields without backpropagation."""
