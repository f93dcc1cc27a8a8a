"""Data preparation: raw or published data -> chunk JSONL files and a stream manifest."""
