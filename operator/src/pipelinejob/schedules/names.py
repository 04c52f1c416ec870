"""The names under which users ask for schedules."""

from enum import StrEnum


class ScheduleName(StrEnum):
    """Micro-batch schedules, by the names that their papers gave them."""

    GPIPE = "GPipe"
    ONE_F_ONE_B = "1F1B"
    INTERLEAVED = "Interleaved1F1B"
    LOOPED_BFS = "LoopedBFS"
    ZB_H1 = "ZB-H1"
    ZB_H2 = "ZB-H2"
    ZB_1P = "ZB-1p"
    ZB_2P = "ZB-2p"
    ZB_V = "ZB-V"
    V_HALF = "V-Half"
    V_MIN = "V-Min"
    DUALPIPE = "DualPipe"
    DUALPIPE_V = "DualPipeV"
    HANAYO = "Hanayo"
    CHIMERA = "Chimera"
    PIPEDREAM = "PipeDream"
    PIPEDREAM_2BW = "PipeDream-2BW"
    FORWARD_ONLY = "ForwardOnly"
    AUTO = "auto"
    CUSTOM = "custom"
