# 红楼梦 in Qwen2's tokens, trimmed to the 9,332 that the training text needs, to leave the parameters to the model.
#     python data/hongloumeng/prepare.py --tokenizer=qwen2 --tokenizer_file=tokenizer.json --trim
#     python train.py config/train_hongloumeng_qwen2.py
# --dataset=hongloumeng_qwen2 is the same without --trim: 29 million embedding parameters instead of 1.8, for ids that
# hardly ever occur, and worse text after the same time.

out_dir = "out-hongloumeng-qwen2"
dataset = "hongloumeng_qwen2_trimmed"

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
wandb_run_name = "qwen2"
