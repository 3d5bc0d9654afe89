"""What every training run needs: checkpoints, resuming, records, losses, metrics, processes."""
