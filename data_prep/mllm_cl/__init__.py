"""The published MLLM-CL -> a stream: `python -m data_prep.mllm_cl`. See data_prep/README.md."""
