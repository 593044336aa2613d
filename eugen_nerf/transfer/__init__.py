"""The command eugen-transfer: trained MLP fields become EUGen fields without backpropagation."""
