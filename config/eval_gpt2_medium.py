# Loss of GPT-2's own weights (gpt2-medium) on data/openwebtext.
#     python train.py config/eval_gpt2_medium.py

init_from = "gpt2-medium"
eval_only = True
eval_iters = 500  # many, for a precise estimate
batch_size = 8
