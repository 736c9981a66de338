#include "CPlatform.h"

#if __STDC_HOSTED__
_Thread_local struct cp_processor cp_this_processor;
#endif
