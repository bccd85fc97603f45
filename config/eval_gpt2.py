# Loss of GPT-2's own weights (gpt2) on data/openwebtext.
#     python train.py config/eval_gpt2.py

init_from = "gpt2"
eval_only = True
eval_iters = 500  # many, for a precise estimate
batch_size = 8
