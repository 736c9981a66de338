#define _GNU_SOURCE
#include "CPlatform.h"

#if __STDC_HOSTED__
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Thread_local struct cp_processor cp_this_processor;

typedef char *demangle(const char *name, size_t length, char *output, size_t *output_length, uint32_t flags);

const char *cp_code_name(uint32_t low_bits) {
  static _Thread_local char text[512];
  const uintptr_t span = (uintptr_t)1 << 30;
  // The program's own code ends in these bits at one of three places near this function.
  uintptr_t base = ((uintptr_t)&cp_code_name & ~(span - 1)) | (low_bits & (span - 1));
  const uintptr_t places[] = {base, base - span, base + span};
  for (int i = 0; i < 3; i++) {
    Dl_info info;
    if (!dladdr((void *)places[i], &info)) continue;
    if (info.dli_sname) {
      demangle *find = (demangle *)dlsym(RTLD_DEFAULT, "swift_demangle");
      char *name = find ? find(info.dli_sname, strlen(info.dli_sname), 0, 0, 0) : 0;
      snprintf(text, sizeof text, "%s +0x%zx", name ? name : info.dli_sname,
               (size_t)(places[i] - (uintptr_t)info.dli_saddr));
      free(name);
      return text;
    }
    const char *file = strrchr(info.dli_fname, '/');
    snprintf(text, sizeof text, "%s +0x%zx", file ? file + 1 : info.dli_fname,
             (size_t)(places[i] - (uintptr_t)info.dli_fbase));
    return text;
  }
  return 0;
}
#endif
