# 红楼梦 by character, deep and narrow: 24 layers, 512 wide, 78 million parameters; for a GPU.
#     python data/hongloumeng/prepare.py && python train.py config/train_hongloumeng_deep.py

out_dir = "out-hongloumeng-deep"
dataset = "hongloumeng"

eval_interval = 100
eval_iters = 20
log_interval = 10
always_save_checkpoint = False  # keep the best

# 64 x 256 = 16,384 characters per step, 48 steps per epoch
gradient_accumulation_steps = 1
batch_size = 64  # if memory runs out, 16 and gradient_accumulation_steps = 4
block_size = 256

n_layer = 24
n_head = 8
n_embd = 512
dropout = 0.3  # a hundred parameters per character: without it the best loss comes early and is worse
pos = "rope"
qk_norm = True

optimizer = "muon"
learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 50
max_iters = 1000  # 21 epochs
beta2 = 0.99

wandb_project = "hongloumeng"
wandb_run_name = "deep"
