"""What does a smaller cache cost a trained model?"""
