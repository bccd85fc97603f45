# Teaches a small model that was trained here on one text to answer questions about it: minutes on a laptop's CPU.
#     python data/chat/make.py --dataset=x
#     python data/chat/prepare.py --input data/chat/train.jsonl --val_input data/chat/val.jsonl --init_from=out-x
#     python train.py config/chat_small.py --init_from=out-x

out_dir = "out-chat"
dataset = "chat"
init_from = "out"  # the trained model; the shape is its own

eval_interval = 100
eval_iters = 50
log_interval = 20
always_save_checkpoint = False  # keep the best

# 32 conversations per step; each micro-batch is as long as its longest
batch_size = 8
gradient_accumulation_steps = 4
max_minutes = 5
max_iters = 1000000

learning_rate = 3e-4  # a small model bears more than a large one; at 1e-3 it forgets what it knew
min_lr = 0.0
warmup_iters = 20
dropout = 0.1
