"""SAME as its released code computes it (github.com/LAMDA-CL/Prism), defects included."""
