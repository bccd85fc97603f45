# Teaches a trained model to answer; minutes on a GPU, and for a small model on a CPU.
#     python data/chat/prepare.py --input chats.jsonl --init_from=out-x
#     python train.py config/chat.py --init_from=out-x

out_dir = "out-chat"
dataset = "chat"
init_from = "out"  # the trained model; the shape is its own

eval_interval = 100
eval_iters = 20
always_save_checkpoint = False  # it overfits soon: keep the best

# 16 conversations per micro-batch, 32 per step, each padded to the model's context, or to --block_size
batch_size = 16
gradient_accumulation_steps = 2
max_epochs = 3

learning_rate = 1e-4  # about a tenth of the one for pretraining
min_lr = 1e-5
dropout = 0.1
