# 红楼梦 in tokens of its own, small enough for a laptop's CPU: a BPE of 4,096 ids, 1.4 characters per token.
#     python data/hongloumeng/prepare.py --tokenizer=bpe --vocab_size=4096
#     python train.py config/train_hongloumeng_bpe.py

out_dir = "out-hongloumeng-bpe"
dataset = "hongloumeng_bpe"

eval_interval = 100
eval_iters = 20
log_interval = 10
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 32
block_size = 256

n_layer = 2
n_head = 4
n_embd = 192
dropout = 0.1
pos = "rope"
qk_norm = True

optimizer = "muon"
learning_rate = 4e-3
min_lr = 0.0
warmup_iters = 20
max_iters = 600
beta2 = 0.99

wandb_project = "hongloumeng"
wandb_run_name = "bpe"
