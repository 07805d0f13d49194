#!/bin/sh
# What a GPU is asked for: votes and attacks with two networks of ImageNet's size; at most 8 minutes.
# Usage: sh benchmarks/gpu.sh > gpu.txt
set -e
speed="timeout 120 python benchmarks/smoothing_speed.py --device cuda --repeats 5"
$speed --network EfficientNet-Lite0 --variants float32 bfloat16
$speed --network ResNet-50 --variants float32 bfloat16
$speed --network LeNet --variants float32 bfloat16
timeout 120 python benchmarks/attack_speed.py --device cuda --network EfficientNet-Lite0 --repeats 5
