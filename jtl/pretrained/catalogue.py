"""Well-known names of weights: `init = 'resnet50.a1_in1k'`. A short list; any other is `hf:OWNER/NAME`.

The tag behind the dot is timm's: who trained them and on what. `in1k` is ImageNet with 1,000 classes, `in21k` the
larger one with 21,843 (as is Hugging Face's `-in21k`, without a head), `_ft_in1k` first the one and then the other.
"""

TIMM = (
    # He et al. 2015, arXiv:1512.03385; `tv` are torchvision's, `a1` those of Wightman et al. 2021, arXiv:2110.00476
    'resnet18.tv_in1k',
    'resnet18.a1_in1k',
    'resnet34.a1_in1k',
    'resnet50.tv_in1k',
    'resnet50.a1_in1k',
    'resnet101.tv_in1k',
    'resnet101.a1h_in1k',
    'resnet152.a1h_in1k',
    # Kolesnikov et al. 2019, arXiv:1912.11370
    'resnetv2_50x1_bit.goog_in21k',
    'resnetv2_50x1_bit.goog_in21k_ft_in1k',
    # Steiner et al. 2021, arXiv:2106.10270
    'vit_tiny_patch16_224.augreg_in21k',
    'vit_tiny_patch16_224.augreg_in21k_ft_in1k',
    'vit_small_patch16_224.augreg_in21k',
    'vit_small_patch16_224.augreg_in21k_ft_in1k',
    'vit_base_patch16_224.augreg_in21k',
    'vit_base_patch16_224.augreg_in21k_ft_in1k',
    'vit_base_patch32_224.augreg_in21k',
    'vit_base_patch32_224.augreg_in21k_ft_in1k',
    # Touvron et al. 2020, arXiv:2012.12877
    'deit_tiny_patch16_224.fb_in1k',
    'deit_small_patch16_224.fb_in1k',
    'deit_base_patch16_224.fb_in1k',
    'deit_base_distilled_patch16_224.fb_in1k',
    # Howard et al. 2017, arXiv:1704.04861; Sandler et al. 2018, arXiv:1801.04381
    'mobilenetv1_100.ra4_e3600_r224_in1k',
    'mobilenetv2_100.ra_in1k',
)
HUGGING_FACE = (
    'google/vit-base-patch16-224',
    'google/vit-base-patch16-224-in21k',
    'facebook/deit-base-patch16-224',
    'facebook/deit-base-distilled-patch16-224',
    'microsoft/resnet-18',
    'microsoft/resnet-50',
    'google/bit-50',
    'google/mobilenet_v1_1.0_224',
    'google/mobilenet_v2_1.0_224',
    # Devlin et al. 2018, arXiv:1810.04805; Wang et al. 2020, arXiv:2002.10957
    'google-bert/bert-base-uncased',
    'google-bert/bert-base-cased',
    'sentence-transformers/all-MiniLM-L6-v2',
)
KNOWN = {
    **{name: f'hf:timm/{name}' for name in TIMM},
    **{name.split('/')[1]: f'hf:{name}' for name in HUGGING_FACE},
    **{name: f'hf:{name}' for name in HUGGING_FACE},
}
