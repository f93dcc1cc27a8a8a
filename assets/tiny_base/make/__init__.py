"""The tiny base model of the `tiny` recipe: InternVL architecture, pretrained on descriptions.

`python -m assets.tiny_base.make --minutes N` makes it again; `assets/tiny_base` ships it.
"""
