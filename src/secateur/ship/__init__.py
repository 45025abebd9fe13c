"""What a trained network is for: pictures of what it predicts, files for other runtimes, measured speed."""
