"""InternVL checkpoints that bring their own code, rewritten for the class in transformers.

`python -m recipes.convert_internvl FOLDER --to FOLDER`: names and shapes are compared before
anything is written, tensors are copied bit for bit, and no Python file of the checkpoint is run.
"""
