"""The main job as a library: was each text in the fine-tuning data?"""
