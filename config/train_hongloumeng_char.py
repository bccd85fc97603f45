# 红楼梦 (Dream of the Red Chamber) by character, small enough for a laptop's CPU.
#     python data/hongloumeng/prepare.py && python train.py config/train_hongloumeng_char.py

out_dir = "out-hongloumeng-char"
dataset = "hongloumeng"

eval_interval = 100
eval_iters = 10  # 640 windows of each split; the validation split has fewer, so all of it is read
log_interval = 10
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 2
n_head = 4
n_embd = 128
dropout = 0.0

optimizer = "muon"
learning_rate = 4e-3
min_lr = 0.0
warmup_iters = 20
max_iters = 500  # more overfits: it memorizes the 0.8 million characters before it writes any better
beta2 = 0.99

wandb_project = "hongloumeng"
wandb_run_name = "char"
