"""What does a smaller cache cost, at equal bytes?"""
