# GPT-2's shape on OpenWebText with the recipe of the speed_* files: Muon, RoPE, QK-norm, and an untied head, which
# turns 124M parameters into 162M.
#     python data/openwebtext/prepare.py
#     torchrun --standalone --nproc_per_node=8 train.py config/speed_gpt2.py

out_dir = "out-speed-gpt2"
dataset = "openwebtext"

# 32 sequences x 1,024 tokens x 16 micro-batches (2 on each of 8 GPUs) = 524,288 tokens per step
batch_size = 32
block_size = 1024
gradient_accumulation_steps = 2 * 8

max_iters = 10000  # 5.2 billion tokens
eval_interval = 500
eval_iters = 200
log_interval = 10

n_layer = 12
n_head = 12
n_embd = 768
pos = "rope"
qk_norm = True
tie_weights = False
init = "kaiming"

optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 3e-3
schedule = "wsd"
cooldown = 0.4
min_lr = 0.0
warmup_iters = 200
beta2 = 0.95

wandb_project = "owt"
wandb_run_name = "gpt2-124M-speed"
