# Loss of GPT-2's own weights (gpt2-large) on data/openwebtext.
#     python train.py config/eval_gpt2_large.py

init_from = "gpt2-large"
eval_only = True
eval_iters = 500  # many, for a precise estimate
batch_size = 8
