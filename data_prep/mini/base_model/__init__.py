"""The tiny base model of the `tiny` recipe: InternVL architecture, pretrained on descriptions.

`python -m data_prep.mini.base_model --minutes N` makes it again; `assets/tiny_base` ships it.
"""
