"""reasonrl: which way of learning from feedback makes a language model reason better?"""
