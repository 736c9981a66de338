; The path of another processor to Swift, and the switch between threads.
;
; A processor that is started begins in real mode at the first byte of a page below 1 MiB (Intel SDM vol. 3A,
; 9.4.4 "MP initialization example"), where Kernel/Processor/ProcessorStart.swift has put a copy of `trampoline`.
; The copy only leaves real mode: the rest lies in the stub, at its physical address, and goes through the stub's own
; page tables, which map it where it is and where the kernel is. Processors are started one by one; the
; record for one of them is `processor_start`. One that comes too late, or is not the one that was called, halts.
; The caller may withdraw the call at any time and write the record anew for the next processor. So the called processor
; reads the record into registers first, and uses them only if it still has the claim after that.
;
; A processor is identified by its local APIC, by the identity that the calling processor reads: 32 bits of an x2APIC,
; 8 bits of an xAPIC (Intel SDM vol. 3A, 11.4.6 and 11.12.5.1). CPUID gives the identity after reset, which firmware
; may change.

VIRTUAL equ 0xffffffff80000000

CALLED  equ 1                   ; StartTicket.State
CLAIMED equ 2

extern boot_segments, boot_tables, kernel_processor, kernel_thread
global trampoline, trampoline_end, processor_start, cp_switch, cp_thread_entry

; --------------------------------------------------------------------------------------------------
section .boot.text progbits alloc exec nowrite align=16

; Copied, so nothing here may depend on where it lies.
bits 16
trampoline:
        cli
        cld
        mov ax, cs
        mov ds, ax
        o32 lgdt [.register - trampoline]
        mov eax, cr0
        or al, 1                                ; PE
        mov cr0, eax
        jmp dword 24:protected
.register:
        dw 4 * 8 - 1
        dd boot_segments
trampoline_end:

bits 32
protected:
        mov eax, 16
        mov ds, eax
        mov es, eax
        mov ss, eax

        mov ecx, 0x1b                           ; IA32_APIC_BASE
        rdmsr
        test eax, 1 << 10                       ; an x2APIC
        jz .memory
        mov ecx, 0x802
        rdmsr
        mov ebx, eax
        jmp .claim
.memory:
        and eax, 0xfffff000
        mov ebx, [eax + 0x20]
        shr ebx, 24
; StartTicket: the identity below, CALLED or CLAIMED above. The exchange fails for every processor but the called one,
; and for that one when the call was withdrawn.
.claim: mov eax, ebx
        mov edx, CALLED
        mov ecx, CLAIMED
        lock cmpxchg8b [processor_start.ticket]
        jne halt

        mov eax, boot_tables
        mov cr3, eax
        mov eax, 1 << 5                         ; CR4.PAE
        mov cr4, eax
        mov ecx, 0xc0000080                     ; EFER: long mode, no-execute
        rdmsr
        or eax, (1 << 8) | (1 << 11)
        wrmsr
        mov eax, (1 << 31) | (1 << 16) | (1 << 5) | (1 << 1) | 1     ; CR0: PG, WP, NE, MP, PE
        mov cr0, eax
        jmp 8:long_processor

halt:   cli
        hlt
        jmp halt

bits 64
long_processor:
        mov eax, 16
        mov ds, eax
        mov es, eax
        mov ss, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        mov r8, [processor_start.root]
        mov r9, [processor_start.control]
        mov eax, [processor_start.attributes]
        mov edx, [processor_start.attributes + 4]
        mov rsp, [processor_start.stack]
        mov rdi, [processor_start.block]
; StartTicket: the claim comes after all reads of the record, as loads stay in order (Intel SDM vol. 3A, 9.2.2).
        mov ecx, CLAIMED
        shl rcx, 32
        mov esi, ebx
        or rcx, rsi
        cmp [processor_start.ticket], rcx
        jne halt
        mov cr4, r9
        mov ecx, 0x277                          ; the page attribute table, before the tables that use it
        wrmsr
        mov rax, high
        jmp rax

; struct cp_processor_start
section .boot.bss nobits alloc noexec write align=8
processor_start:
.ticket:     resq 1
.root:       resq 1
.control:    resq 1
.attributes: resq 1
.stack:      resq 1
.block:      resq 1

; --------------------------------------------------------------------------------------------------
section .text progbits alloc exec nowrite align=16

; The final tables; from here the stub is out of reach.
high:
        mov cr3, r8
        mov rax, rdi
        mov rdx, rdi
        shr rdx, 32
        mov ecx, 0xc0000101                     ; the base of gs
        wrmsr
        xor ebp, ebp                            ; the last frame of any backtrace
        call kernel_processor
.stop:  cli
        hlt
        jmp .stop

; void cp_switch(uint64_t *saved, uint64_t stack): leaves one thread and resumes another after its own call
; of this. The registers that survive a call are saved on the stack of the outgoing thread.
cp_switch:
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [rdi], rsp
        mov rsp, rsi
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret

; A new thread begins here after its first switch.
cp_thread_entry:
        xor ebp, ebp                            ; the last frame of any backtrace
        call kernel_thread
        ud2
