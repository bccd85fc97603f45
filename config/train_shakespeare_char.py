# Tiny Shakespeare by character: a small run to start with. Takes minutes on a GPU; docs/en/runs/shakespeare.md has the
# options for a CPU.
#     python data/shakespeare_char/prepare.py && python train.py config/train_shakespeare_char.py

out_dir = "out-shakespeare-char"
dataset = "shakespeare_char"

eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # the text is small: the model overfits, so keep the best

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # a small model tolerates more than GPT-2's
min_lr = 1e-4
warmup_iters = 100
max_iters = 5000
beta2 = 0.99  # few tokens per step: average the squares over more of them

wandb_project = "shakespeare-char"
wandb_run_name = "mini-gpt"
