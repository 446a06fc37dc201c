"""LSTM, GRU and RNN with a size for each layer and direction."""
