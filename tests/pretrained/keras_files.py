"""HDF5 and Keras files for the tests, as text, so that neither h5py nor Keras is needed to run them.

Written by Keras 3.15.1 and 3.0.5 (`keras3*`, one model: `WEIGHTS`), the others by h5py 3.16; `keras2` has the layout of
Keras 2 with names as TensorFlow made them. Each is deflated, then base 85.
"""

import base64
import functools
import io
import zipfile
import zlib

import numpy as np


@functools.cache
def whole(name: str) -> bytes:
    """The bytes of a file."""
    return zlib.decompress(base64.b85decode(''.join(FILES[name].split())))


def archive(version: str, **other: bytes) -> bytes:
    """The bytes of a .keras file: `other` replaces or adds members."""
    members = {'metadata.json': b'{"keras_version": "3"}', 'config.json': whole(f'{version}.config')}
    members |= {'model.weights.h5': whole(f'{version}.weights'), **other}
    with zipfile.ZipFile(out := io.BytesIO(), 'w') as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


# Conv2D without bias -> BatchNormalization without scale -> DepthwiseConv2D -> BatchNormalization -> Conv2D -> pooling
# -> a Sequential of one Dense layer. The i-th of these is arange + 100·i.
SHAPES = {
    'first/kernel': (3, 3, 2, 3),
    'first_bn/beta': (3,),
    'first_bn/moving_mean': (3,),
    'first_bn/moving_variance': (3,),
    'dw/depthwise_kernel': (2, 2, 3, 1),
    'dw/bias': (3,),
    'dw_bn/gamma': (3,),
    'dw_bn/beta': (3,),
    'dw_bn/moving_mean': (3,),
    'dw_bn/moving_variance': (3,),
    'second/kernel': (1, 1, 3, 3),
    'second/bias': (3,),
    'inner/fancy/kernel': (3, 2),
    'inner/fancy/bias': (2,),
}
WEIGHTS = {
    name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 100 * i
    for i, (name, shape) in enumerate(SHAPES.items())
}

FILES = {
    'bf16': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf+@w(XF!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{HUI7aiwX#POt4_JD7!HTLbJGCe;HOI<;0WCc`kZEtQpT7$u&=
gp@YhXq-cLkJxf^{^Gh$&~#!wXT)@Pf;k^3=@qj1oja11e`Y@RT#K_-15agNQN0<RK{prVnZ@63qctDhkA)B99fyXJTSvgp@N7{mhIGkhTK@8;XAr?q*
{U0jf?ZsVqnZ@+E=x2|&wlMx+u8=3WrbjSJZi0W=A3^mO}zeKZY{0~+iV4xF`hclP&TM5>mNV-p0D(sJ?>OAO6mx^D1~hTJF^1*2dTjDk@x3P!;w7zLw
X6pVsVFw_75(Jy2p
    """,
    'bomb': """
c-rlj&q~8U5XNV-{S#}8tsYwRVDSk&dy3FXPAclbn+>>Cu@<QX6$Fc?`X;^k3VQ1^_yoOp6>l}0-EB-Pq7?-7`(1|YOlFqNH?z5QD{HyTe1;^pO$o}=T
ZWqYQuNvQYuYkxyV~|Fv(5uwNw4R1{xXlgzq3`X%IIMXQ^!duYZLg7xYgB7X?I6DQuM88oEOuh`^~xqT`8{XEIGPP*4Jc-8s4R7?KQm<aTcu4F|`NASY
$u!-9E?nM>qYo{&=y`ALx&;Ka8FR$!OfMXf;J+Wtn1nbSA93y}nUleioy<4v*&T>F0hD-{>=QCVpPwoXG`q=3E>d9Ja$jBj=3$!JIMQn^8)wG2>SXG4F
*FRax%)rKeC{^#2Kh8=HzY6|Z$v(yuE07Po=~)4pHLJCk4f8SRUD!)ptgA~T;<U2a)UhDIe5;Yrkf<h<j$9i*YbNs#vv8*?u`&y0^hosF+3y(Msz0002
MpXK85=^^+>yeSXwny$leBme*a000000Kl*3YJuMqdj;G;ct8
    """,
    'chunks': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf9Jo;VF!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{HUI7aiwX#POt4_JD7!HTLbJGCe;HOI<;0WCc`kZEtQpT7$u&=
gp@YhXq-cLkJxf^{^Gh$&~#!wXT)@Pf;k^3=@qj1oja11e`Y@RT#K_-15ag@`f2<TW5P6HFxsUYZ$bH%O(Rf;_N|0ItCq#5owm>!GSxf$Bi=Ow14iIiM
+!nTZ)*RDp_4AckmXs2I@jMo+gd*hkYKIRF3{Zemp
    """,
    'compound': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf9E4E$F!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{HU1V;16X#POt4_JD7!HTLbJGCe;HOI<;0WCc`kZEtQpT7$u&=
gp@YhXq-cLkJxf^{^Gh$&~#!wXT)@Pf;k^3=@qj1oja11e`Y@RT#K_-15ag@`f2<RK{prVmz(!f0lO3b0Z!CW!fI2E_S80H~M+Qo}Q(8A8NZ2>D$>9<E
26gF(C=$YKTB3bLPxiHQ+Xu0h<(%=m)?wFZCzjnPCj3P!;w7zLwX6pR9r+O03xN5h01005-1T;K
    """,
    'continued': """
c-rk)!A=4(5N&r^s6>pbBE*Y)0$#m{379>pQ4ic?Nj6GEV!*_Bk|X?uM?S$%*iYdva7$-^R@?}9AYopznRI75ZMM_5eeHYYi%j|`%_M|i3AW2-F#_cCd
K>*UupDd;?7+hJ&e#XtqwFew!PfiV-Bc<vdSn2{DJ8K#VH4q1&ab7dLL2KTwDdS1Y~85K(vst1y$(})y>3HB&N56yvuXP8LHoYtKL?$ne811t*qn219^
9BGXZGCv@s(R_e^gy%1(gczkC}QJI(pnw&~63I(<1w){c(GFRp!i^)Lqxs^A4aLIy!%U?&)zMw1)?qxqdEu8S^`sJo6Sb9v)v6(IC$xV|b?C@H=v~F~9
kLj^VMBzwp?UXVrfm9ULkU`yoxEwIjduxP{~B%rQO@u$*AI5AZwDY^2|^EUtJ><+FKpYd+KU)@(()XX+sk2m}IwuqjaIVm>*gcqGi0!f*Pxms(68zZ{Z
2CVf2B$EZU^R*yryg!;x?xqjnyk*TMa*F`nZMTxc6MJ6xSvQ(R^+!vVlD^oqc^W(mt2zp+`)F0jteFK#Tibw
    """,
    'dense': """
c-rgqaB<`1lHy|K;9!7(|4<+z3E>++#rM?u?eO<-31VWXU=l)B2m@S942%p6qCyNTm~uQu3=GT+JPaHRA`A>UiIu5E@p*~4sl^P!KrKMTz{CgyP@7<MA
{!5g!<e`kD)1;ZWIEId0s;&SPD~JCeW*0V0U()LW>gs-E0FcP5bMiRGt)ClknHEcVSjdNQC@0}l>q}Ha2R~2ZT0~>0q8D95$yVyMHm<b734wT00asQ;v
5X(^*|OY(0$BY9KgV1W`vo^0yB66!_Wg<b4C1}J-k67zJmod#2NT8RLef~+DeU}V;KfPcQhuo3l?;rSqTQ+tBK$Js1bA=!yxFiJZF4`1)Ux{L@Wt+(Cu
4&Qj;1%$1@Cq?%T9STR=gFy^IEykEmeT;fN4w1f9Sz2)Y@2ZVQ8g4pQ|Qh(JUqK+_+C1LZa(Jh`*hDa6Btft3MRuW<uKQZz(FA#$8R2mw|aUkcrVgIyU
8L7l)@#>mhGVjR-iZAiMU4fcfbC>RB!U=)mkQ7{UI6QD-xPGlIg?!;0#u2CZ_B!)p)@Y<$vQzI;7hCx_leAIHIMp!5egRpS<HFLgOkVgOmsL#X1Ab^m8
bs)>2K?3WVFfgIf46xn|aexI$CnGd;85u;xVPZW`W*l@22KJa3U^b)24Z@@Vh6<o=n9Me4zfFn(mA>**{(@78j~fGPLE2>@22W6SV94}XAje<>X7U)y1
T!dsnM}P)^BKax%x4Fz<}f6KnHSzqTF4*@W(M=lI0GKj;bmBHRN^^90hrkr-|&*57R=PX`r*iE6*TC8n}>@Nyn_z{(`GJhXJlY1H!y>zGNy9FLM8;qXb
m%hWBi;2!7)){LvT!CnFho$;}Jw~%q4^n919iU(O4Kb003+a<9`
    """,
    'external': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfG&oTCF!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2P}@#hO1l*dhD{DEWf{XZ{!kqxl0lf56Jg7p$o2VCgS_O7;f(`MWRzO@-Olz>
I3o3Ml^s>u4O|1Bmj37hIl{r)H*SlpqQeP<g_Er##6{Ey_#Hu`*zSmn7Ir3ND~2j7avfF(^RH;c(!9nE@<;^ixZc^$QY<i_23O^ece!0C2`=)c
    """,
    'keras2': """
c-rk;O-vg{6rNrGU^z}OErKmLjbozVMx+pe3ZkeO%8yl{#3D#VRaI<Y`Du)y#z`C%sismZdMZa$wG~IIwi3CaoQRqOs&b%G52%OAYNa;niJr=hzV*!5o
`D62xGISENuP$9eV*O5zc=&d%`Tq>yL!$#tDMAu!$GXXP4cnJ;Jzi+`SCC-6;>{=az*9s*32=DwYypWUJI>nu=aue?ry_+R{}rJik+4X1aTS>?CuB|<s
hrKuyR8c?Ix!p<2saMlkwREFNcO>+2gU89*1%!GICoV&FR)_a^5ngS6SCC5@7mvkaFO#(O+zoyrhuKC)`<|a0ve4%r#}&T+D+M_{#xa5{=x~<3q8?ls=
nje^H_4ib8v^v3_ia-0$A|wCwALykSD{Lt^TO2=v2zKV(uSA-ibD^&TqHd2ijg*`<K$`Rp{IiRW2l_0=jt)@1t?(N4R<#*aGj`kz`vJGYh1H|)Or-2a<
IyG>T#eodU8LhYhmlGT?wj@R$m`{vC)g|Goj9;W~aJvKWXAB#@k6F;|EioSqAAP@)y0)apv5D3Ic0ncyB`3@HevV6c<Qcg5-PoEs0NaPZeW!`p{I|-1c
Go)#k=T8)6-}9K|AN|#|F6JN2_W?pL)6#)I-Km6}f8_bV%_`B3=fk-ggGKTaInS8yCyssm#K_;D%kv8*>koO?S$|uP$Mk4xgVC-Ce!|bY#{6XKd|`gF;
zd6}KgszC*VE2<(JrSvQI~-uo|oq7m8|X-tHpk09V3Xzd}*WKnZoOAoUzgdHr-}RRjMC;T+4J_=Dk4Z)bAyg4pR9MJ8pwt&^WHDszS#RsvwK9eUbfw(i
IQ>r{9OHtECI5k)tEkPF*|zOaYgH>%g?(_8l;*0=>WnU;r2bhJiD{6mS8!*g<!*mVqn4Rp1(M9k>D91a1M-z^A}%;Eu8T)k%mI=m5HaZeTf31A2g7;3c
3RSO;tXHUV3JZNLDq3m63U0YkunPVv4rp#CH9NvHY!64IU`B>CP**h{K3Pr1vZR(!X$`uh*1_6qxlB_+KrGjWxC|Etqk{>L{y!*0E_s=||83~g?HkbeA
0wWm$>oeQKLwj0pf-#f0dKr%5+`?G4=<tO2Aa{J@?j?Pc#AN^D||J9e8Mn)=a?c}ffk7;k^15JsxIknUI)|K}IbG4VqZx%8)YJc>g=j#X5!qrz7^$ow!
U-iX1zi^As10{F<Oiib#h38#OYm94J>qGBcZLQU=kp2eCKX31R`zop&fj}S-hv#8d+4C?91?FLP>T!LE>&w0C%fY&R@-Rcgv7u|lSzq#ei2NLvi)9cG%
EM@Rc^Fk%7v-+AempWY72zx5y!NT-yOXi;p(#BQYi%&g(}b_Gh_k*hKMFO9c`U@~_9HJVm+M74E=oa!dH&S$oa^b9tD=9(Iz|+lr=cSPA7?B@%e!p&_(
&&W;aGhiR99+NSAlB>+w*a6={joZ|IyXYCqh?daqC1gttShNTbElgZpHa_@BX2?S+pC~W3xIb{{Er-zJQBeNum3Pa@?A^&g}jntqo5`W_kQ-7N<H`z~F
B!aJ|=teuI9qH%<+<igxmTBG+QE;?#7r7^liQMid%P&^MYCRg5R(eM0rQ<BPOU%n)!Sk42oyuPX4y!S>nr#9l`&JxiRbn(64`v+8KaxBm=uGU8M>+leg
nIk%Q>oNsZy-5aN_N$-!!@39vvPL<zRE#x`3Qeys`8@<llgKlPV=`!<^^{&GFWU&|h1pQ?1K190f;JCEd&$%T##eQWSBh2PY`+;$33A5wxqs#Sz<5COl
@C*rM>WYQOC63HUG&^x;Y%Hp?KIs4TFxp4;v1lZbYqzj*3TzW26MFo5BOiZQoT6H`*cfchBQgIEBM0j$)q@&23XFNf(3U)J_z(MF4O>r2%~q-IXLgrO)
(IRTX6G~MhvTk^oov5UBdW=2a^8nE`(Kyqkn2Do5C{YUfjDjW7v9xGV*
    """,
    'keras3': """
c-rk9OKcm*bx29JtdB!GPNNn9O0YS&g(}gK)5wK^$hK_Dg%Jyh(+Y8&)rwq^YcF@1-K9QOjj%z2$Z$VKlh#7|GkVgY2Oo9lK}R)B0o|&j4?XzkqtPDRH
?uR#o#FB)Q!-i2Ku^p0aCYX+dvD%*^SFCwa^gaN&$oIIPTk$86U9(4J)>#s&wQTM&(LdxURUUKEy~Idkh%d{9;5xoJG}f9{o>Vk&Y#Dvp9#qy$Z_v7fM
nW_Y4ZG;DSVx#`6Rt=M)`I*E3FyIf~IG(t^;{1@9H`ImSzXag7kX4#(j@adKKxq4^7g34x?kJ8{O1w)lud(+tDo(%D)+jkZ;EPdv$a7Jy0qlWqoLze(o
my&8n%JnwhTIPe-7iC^xQt(vOFalx5E88AQf~s`mHq*Gm0$aQ($df3B_Srfz0fm$mxqh?e^6B;{S9@?i42UcSi5gJ?y0@OaR>#%VtLIh7}pRrZxUc*xe
DUZ++VPenL7^ZED=<>R}oT}LQAKKz337oqCylSBOeC(0|ft1ceo`%5qI@@Voo@lt8tRJ@?|A-?^^b5|}$0*u7TCrG11C*Bx3;mH<X-axvcE^>JyHy|x1
Qikd{imB$b#1G?%3k5Uff=E=2#9%z(2@NP;POt_GS<BFH9g!^Rtbt2iyP!dlp)P?yh5R+K+e>D?;9kbnLbtQ3o60IqR?Xvf*UW-p48~8Azme<EH0>^tn
#7!8sqW|q{<@P_Z3h?5sfL5^Ypa=zmJSrK+v+(rLk5et6*4K>=5|;k-JG=wW?C^p29sG_hi2kT&RORC$V3I?%;~n{RzMD$$#Mc@e1X&?$Sy?s;_fkV6`
D?2hMrogbR&ulJP%vT=#Hz|TAFo$v50Htbi?%)WOR_+%!Iwgf!!5P4vI!Gh8@?|>3mNN#!uj)yqZqKo`G*PuNrz94<fC)sxoKUIn~AGsjO;3Z;k>3Co@
j#hKg~l*s7}qJImNsA&<L<f`kghHBZ{%P7K}DR6-F2M^k2X)d{R29WLx%t`36$l^_gxLxK7bOkOlB+j8GCbv$wbmySkg#v?gce4tQ8T_l*GWmdrz3ajH
A&)_)+{Jv&e4nNT9_oQfo1_eX4>0Rmg$#_C*$U5lmQg|)x6NcarLUx5N%PNBG<nuroJ1r+vI}<7%6vflWT+MVWTT#T7YDheIU1b4Zmc4|(<#Tuv{;uD?
jlXzvfsSPv@*!+~7R#l#F}cG^c?4U9<&{~pb+}$#)bYf=kNGWU<uubR<RG6MI&}(4w7jDmg#D63$s}%*f)-@;>5!e2Y6PY0tOlIF$5fqBbGhfe=@nCJ=
$<)i9xKW@O*Qv=y7bobz=*1u()M`bWPw8kfwv6dvIT!BOhS0y39E6I%v9F4Oz0@MS=*Y4g|k?oqzpZu_qHM00j&^-x=i>`ZrnBbGeZ7G>z6-FB!<eLL{
4>XvegKcMH5=y%`WJUR#o>%FSL#bO5+hLxq{*9c|#{;bD~@W8KFXaw>6MDln#a}hH0sGEZ4EZ1XE4bJWAc}O!@Gbpv5@flSjLue54otFEtOEm5PT{Jla
L^@HuhUWX}om*MRIHvT%ngM^#P3(V#HhCT<R<1hkr)gQ81%Ioi|9QR0DCV)%wN4WOJ^)i^T`ePw_Zffvn8MZV8NeGAzbH8}OArsdOm&Ixn*vYE8b+WGX
<z~a5DeOQ3~NU!Lt*8wAT>#SI_jt54Ya4<mRpuz4~c03Sjg`196Y5t%*Ewv7!3m|+ko=4<X)GAw1!<!9Md{|I{yFCL?@rOs1HvGkcZlo0tk7X>vop3QZ
uxs+J0ZB(?Z(WM%^+AqRopNt}iD-f?=zQrtSS*7d-$2ei4a>o;6FHBoahAoLl$Ic;f!de~6nHIwD#~i?f~jaQGTT@R2ppiHyrbkbThSJ^RDtp#))8;$E
-Y#;uLp%iDf}gXYeDK?tf-e~h(cljhm(*Gs-j|R`;?d7eDen<$41^58}VnNq_vc~RGJ00eW+E$%qpTHDCHHn1oY;DRw}|mMa!vy`9n?#aRorB1xm+)t-
G2sXOoRA6&MCt4dM<^=0Jj3LDSGy(>nC0sHs#TSD@-R!E<2Ug11a!R?sjvTk|CePsjpwQM%~z&-X!x3Y@32tG7QR#KHj>Jz;7Ng!K6R5E6vzA)06P%pu
f+N-;pexPo4xAJRT>{{QaVS0*CxE!JPYlaB*frTO&(eEi+OZ~1oPG(U5Hf5xM*I13S9eQ1;7sSh0k>=CI#c+ZPOs~A5OiE!)8(L=I?`>sG`FZ)RIhZsH
3e2>t+ONc`|!03?X4+`zOtH!CJ+Hq>husF3!@pGtl{9Llscdhu*_*ov0GVQPA$+=E{{gVfI`L+2y?>c>ukJm~L^X*uG;q)*s4`bK(c4IU@eVva}Tubxq
wrKvzTzknm5np{YQqGGz9Y9nY@C98hITsc7uR{U;?xM1Y<vT;->)1MM3-N89o{SJyin;x2$MJRH@qb$v==#=*{~H$L|2+L*x8wif@6h{StPuYf<LT1ZJ
Fs$$YRCVH@q$dBIq1)Gm@Gk8aDBaUwnSV%M}qhn4xDHR{k{^`jvYS)<b4m<4*UH1arAQa#P!d8uP>-S1%})!&>z#s#G$b7AFI%gO|75S_lxc5kPi#=MD
)U8;x8Zweu<VJ4XF<zIws89(?^FHoA~(e=j;70jtc7pw!$!HDA4kk#eSe2=;$`lvIBHj?3a6#OftzNlT0$nB$G@s$t2Tmrdoc}#R(Mf*2uKqlIJ&#`0K
wV_)RPQu2d#IvERKj#6{ToM`yVIvjg#Xu2tWG2FT|l@o!V#TO7UGjb8nT)_1`Q;`(Sb8u9qq^H_DTf%s2UU}<^}=ql>_p*GG}Z_ns2drs0)b-MD_mHE{
>1bW#yog^up^a&$aX(@d8zjqhTY5M3mcX~d-{Mqc<8(<miL+%OWyAkz^(meKQzY@q}5h|V!jM3|=;GbunXy&mNJ>jCqo5_QC-5A?Ehl&8`?{Eb`U%?ds
{R6H5=xewFpnt*@0R0E90O-E}-<Uw-07U>a44(mt0B90E0~7&}3ZDUrD%B*4Z+W}MI6x8L0l)^pBfOKGffWFV10(^)0j2<E0P+AufE9py0IL8G0M-B=0
;~gU0Bizm0c-<20(cDY1mGzEItwcZ&<)TB5Cb>{FaYq{S?`qib%5glg8)f@lK^7?rvb(RCIBV@E(1&fTm{$!_zK`_TnBi$1n?t(-vO=w(0%-Q0>uHw0c
HS-01xo>FK`7wx1bK72(STwmLU&N1lRyTKZDPApe?}09fHfAe|_h)lz=kHB$G@s?S}n7epTB4l0GWa$Lf#0>v4%H=^w)WAt7F_QrwYDFUpQT-4=E{i`Q
iSp+`Td&p)*CUiEe?PU}ex_m(fu-j{S$A6-qh1zqhOKCVi9aQK*M6MR&N@1=3vi*@Qn-Kx}^_j9Tk|9zcr$9|91toU!{{}z9L&__qIQ~!4a@p>KMV(QQ
CL6zgq^B;Kmdo%U%%}h%2jpUnhzIiyqw_}0m&Egx;j+y*`r+1N#WvW-7;Lo{5eIi<>U(~AKss3S564@3;ycg%(CAylLl{C^!y)2udeyBS2vW**Zf06r3
`R@i}nGn6q`)MAx4~##jUMBwDvyWO7JJriXdD$P(%kbx8fqWmEFU|K>(c6yG7avUCsE@A(a)?S}nIvD8qRFy1_;!uPvD7+O5cgO1!VdrY0v*frqWwS<m
)gM(<k3|}>G>N*_4dq8nK7%kWAZU?NxEt-T}`zGUF{t{e%dDZ2-oY!9ZsB6{R35gKcGxf{|M+GOm086MS7!lc$4nS^yRg@m*2D**G*Q{>yO0WqGKFKCw
tM!XO!WY9H`s=o#(l_mY)7_N!q`XPs;tPv3b57d){2L&n32~Tz^tveA3+K1|1C;A1|@_(fr{m_U-_EUf$SJeSEZjTk?_QqjEl)UK0FB_{lqH_s%Jv%=7
!2NXIf&(mN|WCu`ZukKe9O4#bL54oEpr?oXb%&9`gzbLd1l@bnfh2ShrSsa|{B^EgJLyge?SLq?z5KF?m_DTbxR7VvwOewRD_^Xlz=x%ZKzrAGWb(WcQ
+@lyB>)E<7G<DW`Dk4(?+=h^yXZ~Q#>KBj(@PxjW&gYGou=ZXJ9>ZOuT%I(vqpYiS3dkC6kpR&Z>Kfs=E%;H?dxC-`sVdigQ?>}JUa;>~#X!Dw(<g7IO
r*G6~x?gIY?nB$3?T%k67?**c4H0~PM63>eUi_8hXUWgycIM{Yy|pv95Agfz3f-61?#eZ4%pTz5V#WA+@f^5T{m$)&6>2}cE{u4Opa1mh`s~c?FC{HCV
rMpwPX5{!@dVO-lxZjSW9;+YwI4ls*X74W7W4dl#P|XBJg_x~ZzrCgvVA@KG2c$KQ<<K8?^C{=sQ3Ew6`u3Bb&uZnH!pVm{BvYsJbPt_Z{Kgw4*$K>+o
ilIx5JCVd-9x2n&Y=-*|p+(`F7K;eHro3Jv@pkpR=yeAMC7sSsx!Q{*kwPWZK_+#C{jB`6b^@e7BJJP9nx%$sO9iGpmCAE6}k__1Y=o`ypfGbF3Trc1d
-6WS!b0ox+_Sv;{uI_pWCDP`y2qdmDd}wA2_~?bP1=TLt=BZE1Y`4-Bbi^#
    """,
    'keras3.config': """
c-rk+OOM+&5dJF*ogKrEB<<$bW|5*m(H3ZXX|Nzh5-qb!kqSxKaSZ?W4k>Ca>*2K!+prS@I;>`foF~5-i@Od|8Rwh^@9u&psz495iiSv|Tn}fthzyegc
rdsNA`V&;0jU%Iu*;KT#uB8jgHm8Qm$)tRi~=SgbUKX6DUvv>sM7fUaoy1Gc@2fXiYzz3S!PXP2qu~nJ%`N7eH1z8gS*%6nLMIsY*vmF%(w(Io!I3%1E
no-23%W<6eJ0aD}+)lOCfP?$jrOzWj1ydO_(-R(YQ3T(B53lL@0BCVi;NH_#>`A-1+xXEG7>fk)AQ7O-H0l=Nqb;Iv)N;(LW_;(W*<44`8?JmNR4A6xp
2)oH9W<(d>)M4w9xeDcUIJBQYM_jV&pIIA+3X3>LsyY>kM)0GUaZg0b{y4gz=61Pyl{$Bctb3sGQbb+bgtJhR&)Apoq@g_E<Ja3(0YBFZ%-Ap>1WyEm5
!W*8dr1*@$kc*6?6C6d2zsigTwFl%`&mYTXU^L4^(Q4{#=BH?K=H#Oq^cv}y?(%^rol6u$B{W^V^P$1`^yjE|&v!|8g^1#fho$L2R6SOO2Q`@q^*n0xQ
obi}c0$+r>112_=Gy8m;8fSJLfJ*#dy8$G`g_#&Cv{Z!DlimxQimm48msBge>KR5x_&jblcHz^~+p@;@URd(8#mnFAnZj}?PQ@NvA)&YoXtAI%2TPRUe
>5_L*>g00JsSP+<Ncer_tWv4>07%TJ~JDaSN7zmGNr=gDZY<}_xDJlnP%Jp!Du)dS(ykWTpfD9bOgNG8bXQ~bmsGwK$?E7(mw?4r8AWagkO?U5a)K+t6
m@^fQaas9d`+Cg`^@4?I>p#wP97Urj4UlBAP2HaHHy^p{THJqD~+YXIWM>M8AP&)Qb8DFgS6~v<ZX$^q&j~OT`BxVF}KyNEoD`pUTAcM8yZ1nfa1wx_8
uymsbXcv2}~2IX5ih%oXssIh9R(H#+rHcEBK3#<NVvZ4`R}y|$4$>NK|9_N)V08xj?V?!qvrK*sY9WbyL*oyPp@Z5X=^W8e5NHg-=P0#7}Om0Ax*L5Ip
mAH()eUz#E@zA^yZ`#G!}j4thSn2+i0YuI=7HLMMJwrB2=py!Cw7nWxT{HFy9B?t<L3L@!5pbYuf_6zU@%y^<Si&?6B-D{L_xSX1JuG2n6(M-)>^iz)g
oONDnF^rzNvJyD`b=&j^7i|uac&YL5>$aYsd4#525yx?Nb!Dl|v6I=%PHuhuQu=!D&W(&uIUwj1KmNCE`bcek>fx}E?h-kQ9v9p+W1N!RAUELiWSyf&&
+uLBpdT@hgB^&{&3n0RQCB6rzlDz07}x%l;)Ph3HPI60&Hs*QFuD
    """,
    'keras3.weights': """
c-rk<O>7fK6rOb)SR$$h34uXr>mm@LKS~HtEG422UQ&mq#BC@|i;BHTOl;)XCUz2sR;mvijMM`MM04O^amt~G9CPTw2M#U;i35imIQW=jj;O6f-+E^p&
-iB-W5>9DPx>^>?(^*O=G%GS%-EYdZe`@1uESkKGg&59(oKr(6}7-JUuWliw3KL>qUEZE9hdUwZ1ng(+P>&_`I`$DH1Ah}vFqeI^-?Bi?P%@`!yc`iq;
<xptcCYmROe$_8B&-1+P@etoi$!pA{`umyD5Krck}$$`AaJD7Y+Ga%wIN+r8-5v>E@}^btf*3D-y93M)lM|{yJ;4{_GHcU-k~(&rR!r&i3p-mbb(>?4=
`%L^{cSh+bHo^K11(l9c~McOix{7f<cusomQ#{=zjrCK37p!B4ZLKqRC!Y!QwJ=hRv4c!zNOdT>4#htewWEq~lQ6=r^{y_qGw+$FR#vjomi(pxQ@kNKw
~;hF7r*>$3kNJuO9i1!%|`{$wT67N$DPcIh-`du6=(9qD((9qD((9qD((Eh(xX`NhLpD|h|m*3ON6%1)x8e3=d(FLScdOYQ4JS)GReblMfeFl8&Rp@m_
%<(sRSg+shF~{HT4=InaE8CjClLdb2w${V@v3;Jx`t%!KS6?TWiJe{dQ^srE9JD^!r<ZJf-gcPx6Q2+EJggt#{c^NUj_E~!9ry5l^4GN833?y&_;UyE_
b;vY4C-Zq9#3E8{j#*a`6K_FxrP6S_}sF5lAYrHwrIWEV0@W8!jCVwUxxNN;{fC7x?RjW{PRfaG7d<E>v`Viualtl6+8A(HDmc-j8{GO%Pdv&hB&So=?
zCO>J1!cO7({QSY!1@r97EDQ7%tb=5O|6<S+8Kl)t&-ykEbNFYBY1xASD;7~g)H)-%VkkIdvrF<$k^lO6Q)Qjvp1dtS0i1)t*5BGiq~+wx8CvwuLp17a
r!WpePB!u`nk^A?Lm((hIu@j9ffk93a>AtIAI5cTBeB>$B_Cm;z(12TY|7W83=F2D}x2RH#9fDaG_BmpVFUBC(;4Oj)N0oDN-Ko;-}umQ*cHUV3JmjH5
}5Gz0i>;-fK_5*By9)KNi6wnL!1kevS4R8R408W4ca0A8w9>C@E;`5k0fzMWLdAYo<6zBg&dHL=D=4H&wrFl8g*Bo8Baq9JS<>fQ{`W0Gx^Or4mI0nk=
%9FGl5Ok*F4Rz(SKEAz|v~C-~J~E>##dy`KE9D|xX)UWO^^ro7qzd}6R-NcR!|t57)LRzuEa<SufG1Robrd-4I9>gdEH^y(th!%eFX3#vXtAB**zadsg
JW(NA)|ncuAPfb*3lZVx$h!L0Qt>TNyCeKWJVh3#W~dQsDVl~{Lo-?G`!~qui-20k-Zoc+tba{pg0*lM~{a2_@TA;bHsRk`&{+8#GC$hSDZ_19pc+nhV
*jg9QKi!xr7+6TIUj$qPavTF<zs#6n(B((@4VcO6P0WKKF)sW-@E^8g&-541oLzC4fAJ5<vcf5<s3n2_R3QeClGq@nt-}?KC&v*y}=WH)p=lqqK&m{u}
rOApf|Ga(r?WwKC@TQmq^qX^vLTUgWj15r362LZ4tX<S!w;tQ@VbQQ0!|DM54e*Qil5BYZoXv@VZgADPjpV!Z0{J&IjBstp`tt)UGLD8va!9#C`+TMHc
S{nDKN{PnBqer!x%y;R+gjoFXJQGc4_*n>;0!LdHz7$DiF>|AWt$6F&dZio#a>E6NEJomIlY*dI1AgL;q_5#G;)fnkR-xZwSpgt^}-?%55Grw8=?)Bz3
L*MiFjn>}$WqgvaRG;6}dksE4!MB^G_04awkIc+(#CX*@zu8qZzu8TU*We|A52B_pI$yiyu+fq0s1T7xufg8}4FO03G63=u)B#CA20(sR#C3Oh(%ih~_
7BMC=FEHUU2O^dn!KZsG$3=QqJ9;B$8D7V?JDY5%>SkORle37{Ti4mr(f}X0BGj;%f_*+Pvo0!jd~w|?;3xd6s@oNu#e2>S213->Q`%#ew9h(-))KSCo
z0~RuJ<fjx(k6<bHqoJXx>5Gr=qvjxNN#`BwAw=}35SV1|$>H9j5ih9mQHYAAS1jRzy){P`JwG#*$A#{6F9saqL;@5w@YUN*fav!Te88uF@({&{uQ@6}
%49t_WJw-fW<T=0kEK{dpWd+ROMuc$B3jPv~V-^p0J!Sj8C)?bGB{BUoO_uIU#mwyblcb*sHP>+51Jyr6&*gr;jzCVh29`k(ZeAqU}`_1^nF@Ig>!{zz
ALa)0XF~?s=9Qlj<E#>b<q_OKc;(Rzd$LBwh$7q$tfeP>cTA=F;#N>Q+iSK_joUdw@i}8Mq-q%gs<l9ZtdM1W_WJWKG@v4Vj?jq&(*7R>SOBQ}_P5kZD
cD?5JdoA*eWR_@h#P2J_4sZf|fFvM&zho~rw@|$mHr{#?$YDOORo~0C)Qw-h<?;&nZQILz2>g1e{0HoAW{C
    """,
    'keras3_0': """
c-rk8OK=lMwj~=-z<`_(Fof)?lpMTUUPqS6#-!Lq1OrM!fs0R;CAh|8O<S6HG&4Ih@+ZW#I>L?9u8-87ICAtM2Oqszwu)Oga^#rf*6x9Q-P1jqX^p<f!
Y)sjUiEbMQ-5B+Uw>vE=BF<oK6vUNA|a7LgD8po;WY~@Mlj9G=U5zL@dFk=iSzvZv}}asCt3Ze0XIFv{&?%grAq|+wGh0HjJnYXio#wD`AZjONPLH-Gc
4YU2l2{=f;DLwtHqLIL)tJMwXA-REnl9WUq@TCJIwf1<m(}nXZ0LG$4~+-VoSEAC2ZNMp+o-3Sd9KN>9v&zw7ajCMe~MGjy)%6ee-f*5$j6JdIo&;!~^
|0OzUy!Q84rcwTNiHP}BP4ky?ENf%=lPKF5+(UDb=c%2xFa#B22p()@j)`XK)sH(d?rgLp%I@M_GBQ!Je;GJO(>%AV2(Pg%Oe;=~-6sew>Fdr%7EH^f^
E+B4JwKQkW07xfj#UpWx05A=qPHH79>+4jp#u1mT!>fgpWroROID;KX{jrjyApr0U2j%UU{WxB=FHxRy)R|097HF!T=&}7?|bh(VvpQqB7D|*2Jl_+cJ
u~gbs8jycK%@LMMhK5NQ)hzP7Msgjif+0(jS3#jd`dhKuFLkrxTqVUqwezx5C`oonHVNLhdPUR5QfKHdI}50avr0?S3z{K2lUee2+mtPvWG={>P1@zHs
Aai`(`$7(kfG}HMnzX79rP>h;Vhtuy}W4XOWElL17A=r+i5WHuwE{xn&VPq5>hVTNH&-@(mG^KlHu8orLqo9jHM<>mMJR=C~Q*OlB}r;sY{U^Sz0ixvh
0xjLP^%4Hd}(;(=I8hCX-o{EZM>S%8HgzF-i51k(Oa*mna^oL{oJv)9I+#SR(xFqbTbxm<~sUPJlh8v;gZ=q2o?d`#J6_w<*~I<h-I8mf_siRnl{Tsy4
<7JdpV&^JU?pY6H2j!vD=nNXOo=A9t~3*unOjx5-8i2o+7XSgS5;y8Q_)q2yJa)$meQCv?H44CDw^))n~K*yFuAHol*htzxLiNs{a1I9Rt0OOnJ1=t$(
;s!BjF!&)W(@+2z*zuC1l^2fzx)|dN`4iT>}h^${DTnsbi@?jHEljijfq)lE?Nz1<@d|o!nSa&LANN2{+o`oE2+Nws`J~N)l5S#*F(CJ}y+67tjtCV>R
64z(8E6U~an>Kn~#~rm<HkOEYSjMv6@8Pnhmq1cvy@2~Xa5}-ElIl)FxbTxdg^95HpRf{pRWFn*Lx+kK&R=z+&3Jv=q&rK0lkH14S2&^4oi5AvA}3|2q
)%hhDJ`ouZfa4L<qiZ~AyrD{isq=MrqW57sJE+Gro*<|uC`%H`B*q9_Np<h5um5`v{r3*Ce>xW9VT(E9@q|(sw}@9d&-iLIgQL|U(Bh;=i4UP6ZF@CWK
&Jkr6Fx<KWz+|O0Slr+_deqB`F(Ev?AS6E7BV8?Ic0#*nR>-%*)z^C8(>2XAA>4u-H)EOepWfV{IWJix``VTDHT~7;kFl5Z9aV4ybz*|D^(cf!c60Q3Z
-v9gwtF8;p~kZ!MDgCE9*^Ep)}B+qlto2H4}(4n|o4-9ZMKjTGcIE6C1OAm#h{imEA+%Mx{*71(~}{Jm{*+<^o$ozj*kGCLMvdD>B7&yS!O6{ik|4cWz
6TSK+8MDKi&o;zrUP5zQDyK+O4{LHsD3uO%6NWqukV!-^@l~@&B!q7iUTlL8=aEob6CblHJf(sQUNW}H{PIX{@%cklV$J+6;kK}?<yVA%$uo4YKlpeV<
&xb6L&br~V&whVqD*NeF)*FeW;DWqb8%04=O`XVI%@?L7N~$j)IpB^}a4m~y1zeVW<A;<KvVMbH1B~9Xr8-zzu&ACc__{%7gRbGE1yDhT-=DW+MTPn#x
lpK-E6mHIboR}gzsU@d2u$SGSn`Y=<BWa6`4zR{5btMc9=qlTp#uUx5vKMXseAQMHiY;ce$L2ZzRW&|YG?3nyKa0)sE6Xyb9JG9A_@>6Zg9?aq`|q|QK
A3*95E@3m!C5ZqhP;$3rw1Rm*pP~mh)90dQWT*mRux0CiIW4xFCMNK|hYSXy-(WevUNg$H@ltIMtvZA2h%}-2neXmge&m5Kc({isf@Y0eP?}M+@h!kK)
l8eiYt*xOwgRbPTi>*JtKn@E*WAOK<EK?%y2<;{C!dR3sPoCLQ@bF_B(FXp7Nl2z2BKqOJ|K{q9Y)hWDppv4EXPgxnh&64HnGW1^;m;=c4j0e>IYZ;6_
&8}y|Q2>6Mn_ta3^_tXxzb$<@EeShvq8}~=IJ_*t>3VTt{4SMsR5%kyAZ{7IL0e)}F4bKI<)aUGe*14cQeDy^TFL{x*b18UFaU~zbd(6_CU+peEC(>((
-KcZ#osJ;38u1ieD?Jw%{Aa&jN(y@EsP7&rCuEH4lfm%%284URt;z>r4CHw@^=sxErqGE5I`LOe|0HO6JRXm^U2{2MAeNj6-caV@PG9Ue=iB7j=J;F=H
pU~}5DZ%vQ569F6Jh}L6T|@MUl0SJXAlFRe?ts_{tGbx`X9jYX_Nz~0-#Ue8K4S)^6(5$1wb-915^Rr8_(z6>z+A)D!^laO@Nog&|ZL<1V{m70CE5`0C
NB)Ko#Htz$1WlfX4t&0G<MD0Bizm0XzqI0q_#w6~He5{{cXtwFUta07C#tfMWn70H*;`03QR40*nD<0L}nR0h|NK0Zaqr0j>hf0NeuD0{98w87Tw0d<p
Osz~6vY0O;@Jc^ahvasYDxRe;AN{s+VW=zAywr~+&Pp!<*pr~+&PpdaA*A>aaRKBTlf`142SBL0m+6rvD?D0CC*{mPMmpE@A;i{1N)xry2;-X9+9D0;M
7SDSxy<I#w9_GA#>bDCoDoZyM^^8mh2FYf1y`~Tj0yTv+GT#pYi`RR5Y%Fh7?L-v`D3G2}J*q$3t53{u?Prut&eR6eI=o7vV!`G=B=i6JS&i$b|9^Z%A
$~DL1dWx)uB0JR%U)|XieAPdCC=opZ^e}e`J;L9MeZux<SK9P<GFO6nDGGbr-{E#_=28%k-xuJ1O#Thq<^GO%t}w)U(yhM}^W?(~{(blNQR{tnQIEvy^
h&GpZuQO&Oz*r9DAkXB_LwLCsmqZ}^im&BeeI^#+tkM|uQp#NL}72~V}9!PQaDfTblutRcY(z7+acyjbgPd=ed%9sjtJ|`6T*7)cwha#TiM;S-W>4s_4
BWr<8ymHdaXGg*Edtw_lmym7hlco3cl(eJ+xgyk8pdQxap=#0eg-bf9Ed>kv;d>bFR0a-VphXt-E^EF1P0<tMJhcE_L~)_Ix;Xp7k+@&KyE#UNeE`dZ1
l7$$S%(>X!Ez{}k;*L~>I9eYqF6!}lS2^?f<-o-@<y8@IWfY~TIAQ-U9SGSvRM9(ybvYr5YMe`9;Rk_}Rvhm{@R=lbsd{kb{5cmMC3NR~SB>*77*qet0
r4Zb`4x|jDNzb*=I?$<rI*B`$wf0yy=z5e=j8*`ocbu;skUl++qy<hiK+Frko2manNe{Y(<ugu?b=6L*lW&U0?e{Y(<SM3<4q~Rs3Nx?6&_xe1{oMr1Z
Y5V=q(}ExR0cw3dCZ4Z}`$DbCyZ0~FnSb%IK)L?Dhq7L1&kxPXk?eQkhxU$7e%uxNi;;gBg>L-IR}0(gU%L8kpLgz<p9!`j?kDp5vF6Pnp17aF?Re^L5
Kr`DxgE{V3hfGZk&pMq{vh5H#f`TX-tPQydoK2;*M52{|2tI<-`$DA-qa)f9zaI;u7&tr7x6nVocl5z^1t{Ujb8h+@A#A>`Bu$gU;4vPzeD_vLy|rx6U
g&3n)?@9%)b~EM*MhJ@Pqh$l%&=ipX-g19?4R3e^%tHZvEG14ftz)N7Li~_*29;
    """,
    'keras3_0.config': """
c-rk*-EZ135dT+Do*Cj}FYVj5YSW}?n>6iZ6^f471PjN`YzIaW|NG94(?UKdQGucjDG$y0e0RRP-!F%|4iZT+PJ`P{FsBN1PphbhGRk#tnu*9TDS!vvP
7ra>IuwvN<&V2-QcPKl@^w%sEN2qU;+j#w1WcR{qcVyj4lAlOzTdAa{{33T;b)O%=8Ih{Ih=rrW}%)zYW40##(B5%);+^9suHtuE5VdYFr%T}u2WFj3a
7xeji~U#5{PNAL5ZR<(}pTaiV$+kB~=tKF_D=-HO!hj)EM_4ey|TxEQWUtS)4MZO+yyz4mM@n<f$EXont|HsM&){4T?rKBibnDLmhNG11m~_5GJheU;&
&FYm0z^a4J;-#>%4^2(+d{jNXMr7zf(|p#np<jm1i4sWp#+0I*FKPR|<QOi*wY%rp%r4D?nJe7H<7!!U>kEcI<oBDdCS()o!?CCyL4Y~-b^YD$SOWOIq
_iVf_Aar~l6>Rtc)efra*LdHRPufFG8Jhdw>z09oYSG`RPLAwSrC6kqfy`4YF7$@OYKAFX26ZAG)Sb1#Y3RczusM!Cto4_!1X$}n)TB<NC*RmDhb5k=s
msBge>k+<ve8!uN-8f(RSl0O73d8R$2Yt0r!FI@-eGi_)iD&_7_`_^WZ!DM+nNVS}1mF9;n;VqSR5R|d)$jHDRwqIY*8|?Bj(~4d-Gm~n&)nNFB*{yie
iO8n&qOYe(ZYm+IQMbA>jlCQL`2Vga97}3I>^gV&oFjV9Z%$Y>Q?khL^CA?8X`r19f3cF?ip42!^7re6jC@om_iCxtEG@20X;9O(vnW@XliClrs>|<fG
k_E2(c!^B;$sqoVm&msuRM{Q|PHDgad|x;w(if{@1bKDFH{F44%xMbvUR4cizVr2J4(`&O02C<?Boa{`EQ-TnB?o9t;NVDRalEr-H)k!Svzi?C2xG-bp
}H6p~|I6BHlmOS>lU=egbz{0p}PbzpvK<4Z#G5hnrcx(V=i3sj2fcPX*W<3>=YxZY;Ke+GtgN>joTePTi`qQ0C8K6X``5>{*XgZ|ENeqxOm-VF1tS`_T
`m*AuJ*Wa$p&U>(zhuZv>6`D5PhT#yjYLT)GxzuKCc>Q3U_=E8ppM;SIXRh6(auh#1E$?A_GRA7bRh~T$njXj99lW|gOV`>~MP{a=<By!{)MvEx558wI
o5%DQ3~Oaf
    """,
    'keras3_0.weights': """
c-rk;KTKOk7{6zX>O`b66$);OsMDqiL8KT;h1-(U#3pr0L@a_@5~0`zEI^`$0--dG)Hig1jiI6p8LX&-M}`gz9Xxb!(?nwEz{tSB$j||`L;9J!v$@ZI-
UDnLi|><ux_s|l?mh1P?)!ds_nw#hzFX(cUO3BAX0tIXv$KQtN?1Ii`tp28l$t0PMH#oq<J$f?hd5p<+Q;<<`g?j(wO=8V*V(G(rHzrDM)UV{2U6vr@F
ky;7Pa1dcxE<LPKLjar2Zv&={e$c^YPbT#r^T>gZyQA`AbIpJ;+}f#}=zG-?#;eblrP>cYPYOq@#M%8|XU1pFX4Bm$OQ(hxvZmEMFYJ{b!WN;x)Wnr6F
;u<3LCZthkH={e^k<M>F@gTMY72yBMb(=J;#p%8$8f%<*^4PCAVEo5^D`uLNpx>#%hGC`ul)F{ki%-%<0Eqk)(1Mm2w~pFw#HjSo2<_G;C7&bNeatP}O
c@z@QuUQ+lwLSVYZ@qsI9y(hwddX<+8@(;VM)@u^JzgHb+JLvDg<5uRA<XyGiuJG*!@x}3`xPLq8S+b++*+KhB=vgg&z1?#t4j>+r9Zt{UxM!pX7V1e4
P#nnC1EIRo>VbUx-ICX>H#r}>K>Q{CX7krsuhw&+d{!Jio5^GAb!z*V$7K29KsE0(P5S)FXjXneEL){Z3-XQ6JNBEdb-v52oEfa%#_E3*=d0lfrp{X|7
LCUd9+9fFjkkG?O?1bDC(tYU=WKt;+XK)6F+c*am71k=1IqzUfD7OO1OOqxG(ZO|0+s=*fEXYSSOcsB5`ZLN1F#9$0_*^G0eb*;lQAp62B-np0d)Wepa
I|nTmm!!S^zFU2fz*J0(byEfFE!N5C9C^#N#F5Anq44Z{qp0QQn-sNO_a;W_I2jY%GuN+Z5N`bDHDt-|wsIKV+wyzfQS+a51;;YZGNV(t++{>b|u`wLQ
#ZGPAmmk7P~L^60yx>bRtc6lj4v{RYeHVoA_R&jBxlR;tR(E#52qKV|H0_@Hn-87tkFiDSj(Sj*+g;F#ab*loa<-jnMa|CP$<n-wq90qhrVK8=F+fQ&T
C&^6N7q*1ap_U~8Aqp^4HalflM_x(wp4mIQUxCKhoPe$WtyH)K!veP||B(JU43Tyr2zB`Jw{xaIb$M5uznbl$H8n0Zl#cQ`3I-c+R(Y48MttxY*m3oag
30ecd{)7_1o<j*>e?bXgFQ5dlmr%a+%6C8|4}bm8+<c&=jks5y`9N2DWoX`ifnNajpVue{$2v*NQV!16vWp$%(XzIWx!=@jPD5HhWnu)A5r2U<@_1)q4
Jp@)KSG+rbwmxh)uFb7c}!OB+`acnW#sPjKIQ@F=Y5=G*37%cZgcwZ&S!<|$(TFdRk)svsXtvOj+x`wP*-JetQ9y0&|7^c*Eb8-E2D4x&^G|xe}aAU^N
q^rn=teZKo9%!={Nk{g^_-9`e^<^`Yn6@Ve2l>{9{pEH|{mZ->0|K`zAZx{7wJ<fw%Ddqu6WMp>DNZ%wsaM+E87?*3k39Ip65~G4zs%ESJz7mwFBRG30
oF4oCpl58wlIKmx#?`0%>*c#pYx$@Uk-xAM$O{_$6YzSNg|ECxs{<<*z?J6xmutoM<=r2L$%FUNb!qc3;l_v3vB`Agq(lbPeMjAKoGm~Y%l^*wi@SG^A
AG1=kb0RH_4qdaE&it-r6f$Vvvt3P)hE7tGqNt=jHKbi~fx4Q3-OhxD0M;RLq&y9=+qf;~AgeNB+hvz1yqWkAZBhz!^-%ZR$g0d#J9QA{3>Gp!@H(SOg
r-s9m!SH-!COj4iPESouPDIBt?aW5LeH4k#O@t@axU^nj&z15&nQ<P@{7zutYnAT{!e70w=7+jwl&{e{!jy;YIs4Bj4{r=n9;Q5;J)c~^uhtulL}w!>F
rRck;Qru{IsR^jh`+?&Z2m3`m3BP@&nN8<)ck~bOm?_9;CaaXP{>>y@Q<j^pN!^{Dbqu0y;AR6Iv%2S5s%68#R0r`#NT|?Eb877{<bFLA9XLuHKH;`+C
rIoWW~pv01qGp&;hZPti4L-aN$;DJX{_njuqycx>so_8oy$Z+zRz|+pByA{Cej5A45hE_W
    """,
    'ladder': """
c-rmVF-RL>6bJA-tu>@-zgm$HM1qI}5eXtTSh1;98?0zhX@eDw)zq|FD^{p(j&^f&bj;}Jn9<SE(b3V-%^JU#>ia&ek5axR|8F_(^71acyZb%fa{fvV4
%Y_5L9e(10q>EgyxZ%N*1-zjFMXb&txww>+U6@t$1ATt3(;{!`6HG5`%@D`L&fMzW0lU6cwG8ERynTZ(Cbujo2LEJ{d82p<K}6*@qLZmmx+Ho?=!mN%=
@~AGWu741+IS0%KTP#eQtIBTlUBG@#nrix9|JxclgHdEIuEVcRU|E)ptD~-o4KU7M_pW&qsi^XH`6|bpNIP(|ISy#s__`;?McEEBSfyw0~5^{m$oj+%f
H+e=X1JS8~Rz*Nro^*UtRRep$+G+(1)wCh!+$mb2@t*_Gay?-j4ojWeb5DY|g6psWw)gXqI>#_q$ZAdlOm?Ur#rCLBBSP+YmK`y2?>=>2$|%z=YCH~<H
12hw$J9XPAzdCh*NgmG|y=5i`nqF&~}VLcpx1GWR1dbbXoKjC@Jex`(Ra6nfo+CbO0QRYCQ5e~os+ksr8TL&(l^1Nn0Q^GhnpbHYC1F5jgfuk@SfCIJz
Yhkwzcnv(S+0T?P4i4x_#hYlpYnC~1+zbccfbGC$vs(uOA)eRlXG$0c2Xv(p5t{E>WDcCPzyUa5JFwm2)&bST^P2rk3FF{^u2iy>=DRkT1E+0p01ns=?
6kRcAQUn38vRTO<KTd<R4PjIUAxSIvvxQD2W$s++ub@4Y2|s%ex`(Ra6nfo-9gu_Q|7>VCmetSwgY>eZXJk5d0w-hDPbHO(3Q%>Xuj)`IdIVh2jGD1z<
!ro2VxyOui4L(Fb)prO69s~zUz@W;JttYaKLsT-{aPSc#P*Y`<W8P!2w;VwK&apy)p*^FW~?jupKz)b?ZQ)o98wAnG(jq0bQxhKAP|PWe%uUZ~zY24jl
Hobs!n%dCh*NgmG{{S8AIs%>IDPfzTT`00(Rb3IlE(NcHi&W<OKHI5<G>HyEV(Zdm3(<SiV419!atW7w?&=>*Sf_A@1ng9Ex!yGfewMq~~|-@ySmU^{R
;;?{x8AkS;|GbN0J1G-Xsqcq=*$sCA{!vQ#8J8&}Q)`47-=QaD862`#+U8#L~F;!tg=0JQB4!{B1fzt`M4y=vxyk<XB!Z<iU??IcQ`R={Ufy4(m00(Rb
&fdFqU^B(@n*B@(<KTd<)B#=4<7t@#$&YXV4%iNyPrG$sdy3~Z`<W8P!2w;V!x@_IW@Qef=HLJvupPLVb?d-Rn&&n9nG(jq0bQv=hUU9ZG6&KNZ~zY24
tNW09oU`WdCh*NgmG{{SL$ey=DW`_2Qo`=01ns=1eV-7u$SR^&3>kYapmZMe}@C+|BZOaf!s12fCIJzYT2y=`-?oU+0T?PuH4pdO5+~M
    """,
    'late': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf9Jo;VF!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{HUI7aiwX#POt4_JD7!HTLbJGCe;HOI<;0WCc`kZEtQpT7$u&=
gp@YhXq-cLkJxf^{^Gh$&~#!wXT)@Pf;k^3=@qj1oja11e`Y@RT#K_-15agNQN0<TW5P6HFxsUYZ$bH%O(Rf;_N|0ItCq#5owm>!GSxf$Bi=OiU01IiM
+!nGvO=f?38O1T_~VF#8ijHUmQjUBeqa-M(NSO@rhB0D<FVO#
    """,
    'latest': """
c-rgqaB<`1lHy|K;9!7(|4<+S6*7Q|bMDFc>+j(b#Kcg+B!sLG2Dq3Q7#SEug&0^c<#>!37?>G&7&sV27#MOAD^rW&^AdAYiy4H0T7Zawi4h2(Ho@pbH
Xaa%F>y0g;8AMGbf^;q1Q-~cm>|NYP-(mlumU-N7vg~O)XemZ5+oOJ;BY~9YEfQlj+Fre8!U9n9PT=Uod9$fqY6+LP#e@4K=UC0ozE=7z$mC74{{a|C@
_d~Fo@R!S*$?!GIMbN1CyDN0UFv8FpCy240_;aR@Uq9?BR_)Ij{+X!jS_Ogl5n%jrwkNieVItf>AIEM!{eJ4fa670f>OO0f-kk003YZa)b
    """,
    'latest_chunks': """
c-rgqaB<`1lHy|K;9!7(|4`t<3E>++#gF;+$NGD?1TisGFbN?mgaIxl21W)3Q6UBvOgSDS1_ovZ9tI8u5e9~w#LCp7_`Jm2)M5r<pcWuvU}6LUs7)|Bk
&Oq$VNBc%6?l{yG9Bs!0RaXECnkunDO4J-1FS#};DtD#JT)^tqXfwX95`H%om!Nanqy_azy=GQGKag)U?%|G#i#<*1=I!&C<a_Kvj_vDpn^QeSwNt`Ak
M)cUJqok0^Q5Z%>fKd7A6K}MrLLfX0CFmpBNS}40<4u(4Ow^?BR_)Ij{+X!jS_Ogl5n%jrwkN%FWTk1sLdDumGA2^|X!MntV4$7bjp0!GZyrE>)nk2b9
i%(i5Qc7ASoKO8<e<3Q#NNUEXiXFbYP&C>RB!U=&af003Y&dv5
    """,
    'loop': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf3^-BwF!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2P}@W?;gSKRVb+%O5Y;NAt&M{y^jpSbBQFimEO<wJ0w&$I5^KEj>DrX>YKfzY
8PK6j-`zU`91}1(bh+bu^BMDQD2b3sKJSg3Fom)XemZ5=21*DrY$GlrymS9*rmJ006G9Sn&
    """,
    'lzf': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfDuqz_F!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{HUI7aiwX#POt4_JD7!HTLbJGCe;HOI<;0WCc`kZEtQpT7$u&=
gp@YhXq-cLkJxf^{^Gh$&~#!wXT)@Pf;k^3=@qj1oja11e`Y@RT#K_-15agNQN0<RK{prjHY<9!4_*<v}un3i7}<0l3Cy5a(bJuZPOB0&NA!GchxP4d7
<bfR=Yq1+^UDvMr}74a^0Z!3va9VStrW5c`>#m>jqeR<j^NB!Z^ljh=2_u#cueasa4aV#HD}apF*4AcV??sbd)p%26;1M!_f;1*2ft0$>yHfjEc+0Q&}
Sng
    """,
    'other': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfZit}rVe$!3nh{EOK<O1sFmXn(oCH){5NbZUx{x4OSCH!eXaHu90~>@!b=@c!DZs<kF#tqIK>4urbb<+0T_Th&N
-ZwUDJh1hO9wLT#g%@4Kog>bFlGK?WMD=yUjUXr*irKrB!4jA%pap*G=CuH4-P2(f)zczK|lbN><#wwcVT2;g4@@?jB3vcDE|a2YWb~zrjA<qX{Z8Nxq
=>EJkXMhk%1Q&#u5zWshQ~+CGmNQxv9k<abZSCTr)B<qJ$@m&Q2}LOU<z|U}Rv0h%v(CAteq>AJkeTS^}(8P{AG=w+;*@+zclFp$b@mq9A!DCMHHmdV`
q9%=m)?wS;CsYZ(kC@WCECJqkv_C>RB!U=)mk;RpzgH%t&lZAXuS(eVZlut4jdBqk@979}QEqW7=J9dCg2rx+3aH}=uEAO`>d8I^N|
    """,
    'soft': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf9E4E$F!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrArhgQSMBw4-7yzOppnO<*I>CghE)hysp
ruO(GVK+Fra1I;%>y-&5y;{Ix+W*FGPNi^FEKZ@7%VQ#2(g=ykrBlmjA-t}l|MSzNy{HUpc#W>G^vc{4^a6ErC+e3s>@C-%1h0$GJx^*D^Sy=1&Q_s`}
w;tGBCl@T>~?!c`Km&6RfD^_Y3yXIKx)XpobTtoZ$tRGv%q7=@})6f(BI1aNsFtVDZh!zzPv#gvmon9GE_+wMeuCSgD|bJg`jwNm1e)4C3`rc~+pUAbB
PxCPqlP12K=8@dpRY<*1-zkcD`IJpzw{Q7{Td!6+C7qhKTeNV}C0-fo5Ur<l<Cm!kkb007QaX4n
    """,
    'storage': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfD!5SjF!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{GwoTK?;G=CuS2P{3kU`17zom!Nanqy_afR-K|$h0@u&)<a+Xb
LRdH87)^y8_BT!8#g8#FR7W;e{w?c){gNd1_{QMhT*z0hKcxc*+@Ad^0kzLBtqg@{kk)(+9N{iIxB>6;zN1wh6#BHiI|^gLpkuo)u^-NS=v_32Xp6g9f
C$17k*p9~{`rBOV5rIK+NtMp#M4gQhZqF8M_QExaT+QPt_EmL%&JBo-H!r(jL*FW5)ZE;#@I($r{1
    """,
    'text': """
c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf0;Ev+F!=;1%?PDCp!5nRm^d?7P68?}05xBM8C8EskgF?5^?x(~v&VrALUS;Tf{_S3Tpa^IbObydLBI(nRCS4H>
CuBidj+93p{Hve1_!7;Jis(5!H|<!nOYQ|mzbMc3>Ft=gt&o`krBl`j2Q03o<BO+Ny{G`lB4-!G=CuS2P{3kU`17zom!Nanqy_afR-K|$h0@u&)<a+Xb
LRdH87)^y8_BT!8#g8#FR7W;e{w?c){gNd1_{QMhT*z0hKcxc*+@Ad^0kzLc|zh@*F7Yn1N=4*pfhV1fb<BBT|XN3Zy}NCMJk52Q-B-GydQ}Es<eh#-I
*w7LXq}5n<)-?C-;f<PAn7bs$iZT2X?m{|5hPnjHnBU=)mkQ7{Td!6+C7qhJ(_f>AIEh8jR0$9lm&8Ybib0O?9ylm
    """,
    'windows': """
c-rlm%}T>S5XWbd2A86kg3u2IbL`QN2T-xq9>j`z=%Jvg6k2FgXp5*9J=QnzQG5iCzDdn)W@|Qw*psz5KUjv{nM}5mKN~uEtyNCevZX9Ygn$gV5NAqwo
;lb4Te3)YLiWwl>!^GMTF+7bWZd;-wJM{h3G{tFoyZDc{v);O(S@`PnwQDGTV`C(e{2s&&6YpD>)Zr`Vc+j{pZsxm5H#=o;b^AQojLD|U>o{%Nx$V4Q~
y8d*DXfY<44K*jp=vdm~mQ{yJYvs?kCRKdG&jBUa!a#Sf87oZRV-byyNgQN<+W5lJ#1JL#n3(8)20Lzu%VgBBHv&oz+?xb+=+KGhE>BIz6tRA<#yX`wM
9WX8gxGYk^@HhG7_nVHk#CmJQjrz}O#uq)sOy8hrq5?a(hhId2;>YQ=-Rfc!K09T3WIS(Zv5D4&hG^_lG8PySRrqJCNCdzXduc>T4cQA&@~X*!$faa1I
D*kWDHrz^1(y869(xLgmT9)+c-2g59umxE}i4;tY(RO1U;DPze
    """,
}
