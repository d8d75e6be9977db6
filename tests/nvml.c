/* A driver's library as a test sets it: struct layouts are those of nvml.h (CUDA 12). */
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } process;
typedef struct { unsigned pid; unsigned long long at_us; unsigned sm, mem, enc, dec; } used;

unsigned cards = 1, celsius = 50, milliwatts = 90000;
unsigned computing[8], computing_count, drawing[8], drawing_count;
unsigned busy_pid, busy_percent;
unsigned long long busy_at_us = 1000;

int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = cards; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) {
  *card = (void *)(unsigned long)(index + 1);
  return index < cards ? 0 : 2;
}
static int told(unsigned *pids, unsigned n, unsigned *count, process *found) {
  if (*count < n) { *count = n; return 7; }
  for (unsigned i = 0; i < n; i++) found[i] = (process){pids[i], 1 << 30, -1, -1};
  *count = n;
  return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, process *found) {
  return told(computing, card == (void *)1 ? computing_count : 0, count, found);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *card, unsigned *count, process *found) {
  return told(drawing, card == (void *)1 ? drawing_count : 0, count, found);
}
int nvmlDeviceGetProcessUtilization(void *card, used *found, unsigned *count,
                                    unsigned long long since) {
  unsigned n = busy_pid && busy_at_us > since;
  if (!n) return 6; /* NVML_ERROR_NOT_FOUND */
  if (!found || *count < n) { *count = n; return 7; }
  found[0] = (used){busy_pid, busy_at_us, busy_percent, 0, 0, 0};
  *count = n;
  return 0;
}
int nvmlDeviceGetTemperature(void *card, unsigned sensor, unsigned *found) {
  *found = celsius;
  return sensor ? 2 : 0;
}
int nvmlDeviceGetPowerUsage(void *card, unsigned *found) { *found = milliwatts; return 0; }
