"""Where LaProx meets SGLang: one small module per seam."""
