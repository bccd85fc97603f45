# GPT-2 (124M) on OpenWebText: validation loss about 2.85 after several days on 8 A100 GPUs.
#     python data/openwebtext/prepare.py
#     torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

out_dir = "out-gpt2"
dataset = "openwebtext"

# 12 sequences x 1,024 tokens x 40 micro-batches (5 on each of 8 GPUs) = 491,520 tokens per step
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8

max_iters = 600000  # 300 billion tokens
weight_decay = 1e-1

eval_interval = 1000
eval_iters = 200
log_interval = 10

wandb_log = False  # True logs to Weights & Biases
wandb_project = "owt"
wandb_run_name = "gpt2-124M"
