"""The models: pure Linen modules, arrays in and arrays out."""
