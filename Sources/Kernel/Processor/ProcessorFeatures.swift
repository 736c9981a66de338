// The features of the processor (CPUID, Intel SDM vol. 2A), and the activation of those that Strata uses.

import CPlatform
import PageTables

/// Features of the processor that runs this. The stub has refused one without long mode and NX.
struct ProcessorFeatures {
  var globalPages = false
  var attributeTable = false
  /// Memory type range registers.
  var typeRanges = false
  /// AMD's processors, and those that follow AMD's manual.
  var isAMD = false
  var gibibytePages = false
  var fiveLevels = false
  /// Supervisor mode execution prevention: the kernel never runs a user's page.
  var smep = false
  /// Supervisor mode access prevention: the kernel never touches a user's page by mistake.
  var smap = false
  /// User mode instruction prevention: a user can't read where descriptor tables are.
  var umip = false
  /// Bits of a physical address.
  var addressBits: UInt32 = 36
  /// Bytes that `clflush` writes back at once.
  var cacheLine: UInt32 = 64

  /// Reads the features of the processor that runs this.
  init() {
    let basic = cp_cpuid(1, 0)
    globalPages = basic.edx & 1 << 13 != 0
    attributeTable = basic.edx & 1 << 16 != 0
    typeRanges = basic.edx & 1 << 12 != 0
    if basic.edx & 1 << 19 != 0 { cacheLine = (basic.ebx >> 8 & 0xff) * 8 }
    let vendor = cp_cpuid(0, 0)
    // "AuthenticAMD" and "HygonGenuine"; before family 15 there is no SYSCFG.
    let isNew = basic.eax >> 8 & 0xf == 0xf
    isAMD = isNew && (vendor.ebx == 0x6874_7541 || vendor.ebx == 0x6f67_7948)
    if vendor.eax >= 7 {
      let extended = cp_cpuid(7, 0)
      smep = extended.ebx & 1 << 7 != 0
      smap = extended.ebx & 1 << 20 != 0
      umip = extended.ecx & 1 << 2 != 0
      fiveLevels = extended.ecx & 1 << 16 != 0
    }
    gibibytePages = cp_cpuid(0x8000_0001, 0).edx & 1 << 26 != 0
    if cp_cpuid(0x8000_0000, 0).eax >= 0x8000_0008 {
      addressBits = cp_cpuid(0x8000_0008, 0).eax & 0xff
    }
  }

  /// Switches on the features that are present: global pages, the page attribute table, SMEP, SMAP, UMIP. Each
  /// processor does this before it loads the final tables.
  func enable() {
    var control = cp_read_cr4()
    if globalPages { control |= 1 << 7 }
    if umip { control |= 1 << 11 }
    if smep { control |= 1 << 20 }
    if smap { control |= 1 << 21 }
    cp_write_cr4(control)
    if attributeTable { cp_write_msr(0x277, CacheAttribute.tableRegister) }
  }
}
