# A small Llama on TinyStories: 19,532,032 parameters, 16,384,000 of them for Llama 2's 32,000 tokens; for a GPU.
#     python data/tinystories/prepare.py --fraction=0.1 && python train.py config/train_tinystories_llama.py
#     python train.py config/train_tinystories_llama.py --print_params --vocab_size=32000

out_dir = "out-tinystories"
dataset = "tinystories"

eval_interval = 500
eval_iters = 100
log_interval = 20
always_save_checkpoint = False  # keep the best

# 64 x 512 = 32,768 tokens per step
gradient_accumulation_steps = 1
batch_size = 64
block_size = 512

n_layer = 4
n_head = 16
n_kv_head = 8
n_embd = 256
mlp = "swiglu"
mlp_hidden = 768
norm = "rmsnorm"
pos = "rope"  # rope_theta stays 10,000, enough for 512 tokens; Llama 3 has 500,000 for its 8,192
tie_weights = False
init = "kaiming"

optimizer = "muon"
learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 100
max_iters = 5000  # 164 million tokens, 1.9e16 operations: half an hour on a gaming GPU

wandb_project = "tinystories"
wandb_run_name = "llama"
