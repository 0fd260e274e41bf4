"""Image tasks for `matmix train`, `matmix evaluate` and `matmix study`.

    matmix train imagenet --model dfformer_s18 --recipe published --data FOLDER
    matmix evaluate imagenet --model caformer_s18 --weights caformer_s18.pth --data FOLDER
    matmix train imagenet --model dfformer_s18 --data synthetic --steps 200          # throughput alone
    matmix train cifar10 --mixer "sep_conv, sep_conv, attention, attention"
    matmix train imagefolder --data FOLDER
    matmix study imagefolder --data FOLDER --mixers identity pooling sep_conv attention global_filter dynamic_filter

`--model` takes a name or a call, `"convformer_s18(depths=(2, 2, 4, 2))"`, and `timm:NAME` for timm's own models; with
`--mixer` it gets other token mixers. On several devices the same command goes behind `accelerate launch -m
matmix.experiments.cli` or `torchrun -m matmix.experiments.cli`; the batch of a recipe is that of all devices together,
and `--recipe.accumulate N` computes it in N parts.

What is random about an image (its place in the epoch, its crop, its partner in mixup) follows from the seed and the
step alone, so a training that was killed goes on with the same bits, and any number of processes sees the same batches.
Their losses are then equal up to rounding, but for dropout and drop path, which each process draws for its own part.
"""
