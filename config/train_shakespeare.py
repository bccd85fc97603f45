# GPT-2 (124M) on Tiny Shakespeare in GPT-2's tokens, from scratch: for comparison with config/finetune_shakespeare.py,
# or without pretrained weights. A few minutes on a GPU; about 20 s per step on a 2-core CPU. To fine-tune instead:
# --init_from=gpt2 --learning_rate=3e-5 --max_iters=40.
#     python data/shakespeare/prepare.py && python train.py config/train_shakespeare.py

out_dir = "out-shakespeare-scratch"
dataset = "shakespeare"

eval_interval = 25
eval_iters = 20
log_interval = 5
always_save_checkpoint = False  # it overfits quickly: keep the best

# 8 sequences x 256 tokens x 4 micro-batches = 8,192 tokens per step, 37 steps per epoch
batch_size = 8
block_size = 256
gradient_accumulation_steps = 4
max_iters = 250

n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.2

learning_rate = 6e-4
warmup_iters = 25
beta2 = 0.99

wandb_project = "shakespeare"
wandb_run_name = "scratch"
