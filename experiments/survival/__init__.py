"""Does membership survive what is done to a model after fine-tuning?"""
